"""The questions of the constraint task, each with words an answer could naturally contain."""

__all__ = ["HELD_OUT", "TOPICS"]

_TRAIN = """
What is the moon?|moon night sky light
Describe the sea.|blue waves deep salt
What do bees do?|honey flowers hive pollen
Tell me about cats.|soft pets tail sleep
How do you make tea?|water cup hot leaves
What is winter like?|snow cold coat ice
Why do people read books?|story learn mind words
What is a bicycle?|wheels ride road pedals
Describe a forest.|trees green quiet leaves
What is bread made of?|flour oven yeast water
Why is sleep important?|rest night body health
What does a doctor do?|health care sick patients
Tell me about dogs.|friend loyal walk pets
What is rain?|clouds water fall wet
Describe a city.|streets people busy buildings
What is music?|sound song rhythm notes
How do plants grow?|light soil water roots
What is a mountain?|high rock climb peak
What is friendship?|trust help kind people
What is a volcano?|lava hot rock mountain
What do farmers do?|crops animals land food
Describe a beach.|sand sun waves sea
What is a river?|water flows land fish
Tell me about elephants.|large trunk ears animals
What is a library?|books read quiet learn
Why is the sky blue?|light air sun scatter
What is a clock for?|time hours day hands
What is chocolate?|sweet cocoa sugar taste
How do birds fly?|wings air feathers lift
What is a garden?|plants flowers soil green
Why do we exercise?|body strong health heart
What is a bridge?|river road cross steel
What is the sun?|star light heat energy
Describe a market.|food people sell fruit
What is a teacher?|school students learn help
What is cheese?|milk food taste salt
What is a computer?|data work screen program
Why do we wear shoes?|feet walk protect ground
What is a train?|rails travel people fast
Tell me about horses.|ride fast strong animals
What is a dream?|sleep mind night story
What is a camera?|picture light lens photo
How is paper made?|wood trees water pulp
What is a desert?|sand dry hot sun
What is soup?|hot water bowl vegetables
Why do we laugh?|happy funny joy friends
What is a map?|places roads find land
What is a hospital?|sick doctors care people
What is snow?|cold white ice winter
What is a kitchen?|cook food home stove
What is a painter?|art color paint brush
Why do leaves fall?|autumn trees cold wind
What is a holiday?|family rest travel fun
What is football?|ball team goal play
What is a lake?|water fish land boats
Tell me about whales.|ocean large sea swim
What is a king?|crown rule land people
What is wool?|sheep warm clothes soft
What is a storm?|wind rain thunder clouds
What is honesty?|truth trust people good
"""

_HELD_OUT = """
What is the ocean?|water deep fish salt
What do teachers do?|school students learn help
Describe a winter morning.|cold snow frost light
What is coffee?|hot drink beans cup
What is an island?|water land sea beach
Tell me about lions.|strong pride animals hunt
What is a museum?|art history people visit
Why do we cook food?|heat taste safe eat
What is a car?|road wheels drive engine
What is the wind?|air moves weather blow
Describe a quiet village.|people houses small peace
What is a star?|light night sky hot
What is a poem?|words feelings lines rhythm
Why do we need water?|drink body life health
What is an airplane?|wings sky fly travel
What is rice?|grain food water cook
What does a nurse do?|care sick help patients
Tell me about owls.|night eyes birds hunt
What is a school?|learn students teachers books
What is fire?|heat light burn wood
Why do people travel?|places learn new see
What is ice cream?|cold sweet milk sugar
What is a wolf?|pack wild hunt animals
Describe a rainy day.|water clouds wet umbrella
What is kindness?|help people good heart
What is a boat?|water float sea sail
What is a farm?|animals land crops food
Why do we need trees?|air oxygen shade wood
What is a piano?|music keys sound play
What is gold?|metal yellow value shine
"""


def _parse(text: str) -> list[tuple[str, list[str]]]:
    return [(question, words.split()) for question, words in (line.split("|") for line in text.strip().splitlines())]


TOPICS = _parse(_TRAIN)
"""`(question, words)` pairs that training prompts are made of."""

HELD_OUT = _parse(_HELD_OUT)
"""The same for held-out prompts: no question of these is trained on."""

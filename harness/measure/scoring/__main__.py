"""lm-eval's own command line with `prefix-tree` among its models.

    python -m harness.measure.scoring run --model prefix-tree --model_args pretrained=FOLDER --tasks hellaswag

lm-eval loads no plugins: a model is known to it once the module that registers it has been imported.
"""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    # Running the package has imported it, which is what registers the model.
    cli_evaluate()

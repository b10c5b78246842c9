"""The public functions in Python: check, train, evaluate, finetune, report and export, like the commands."""

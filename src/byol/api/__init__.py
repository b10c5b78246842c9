"""What Python calls: check, train, evaluate, finetune and report, each the work of one command."""

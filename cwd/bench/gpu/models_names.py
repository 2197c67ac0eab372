"""What the models of the experiments are called."""

RESNET, RESNET_HALF, BERT = "resnet50-fp32", "resnet50-fp16", "bert-base-fp32"

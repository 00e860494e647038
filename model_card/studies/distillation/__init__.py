"""The distillation study: a reward that is trained on the labels of a pixel scorer against rewards that are trained on
votes."""

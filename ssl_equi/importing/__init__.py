"""Checkpoints that others trained, brought into this project's folders; see `tools/import_checkpoint.py`.

`tensors` gives what a file holds one flat list of names, `layouts` says which method names its tensors how,
`resnet_names` and `vit_names` find the architecture in the shapes, `sie_resnet_order` recognises SIE's ResNets by order
and shapes, and `encoder_import`, `sie_predictor` and `seq_jepa_import` make modules with the weights.
"""

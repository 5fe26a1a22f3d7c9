"""Evaluation of features on other tasks (Pathak et al. 2016, section 5.2): ``python -m
context_encoder.transfer``.

A linear probe of every layer on a labelled image folder, and the paper's three transfers to
PASCAL VOC: classification, segmentation (FCN-32s) and detection (Fast R-CNN).
"""

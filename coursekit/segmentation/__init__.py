"""Notebook 03: masks of polyps, by a U-Net and by a vision transformer."""

from coursekit.segmentation.losses import bce_dice_loss, dice_loss
from coursekit.segmentation.metrics import confusion_matrix, dice, iou, iou_from_confusion
from coursekit.segmentation.unet import UNet
from coursekit.segmentation.vit import SegmentViT

__all__ = ["SegmentViT", "UNet", "bce_dice_loss", "confusion_matrix", "dice", "dice_loss", "iou", "iou_from_confusion"]

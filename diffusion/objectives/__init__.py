"""Objectives of reward fine-tuning: one small file each, through one trainer."""

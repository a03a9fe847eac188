"""Machine-learning jobs that run on miniray. Needs the extra `[ml]` (torch, torchvision, pillow)."""

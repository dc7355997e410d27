"""Forget images: rows, crops, reports and whatever else an output holds of them, and the next nights leave them out."""

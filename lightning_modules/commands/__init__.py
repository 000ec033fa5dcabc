"""Commands that run no training loop: what main.py adds to Lightning's own."""

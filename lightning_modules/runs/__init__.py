"""Runs: their folders, checkpoints that are whole, exact resuming, true exit statuses, a quiet screen."""

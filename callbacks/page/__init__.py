"""A page in the browser that shows a prediction while it runs."""

"""Video: files and folders of pictures as frames with their times."""

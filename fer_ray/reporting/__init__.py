"""What all pages and pictures for people share."""

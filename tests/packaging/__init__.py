"""What others install, run and look at: the wheel, the action, the templates, the image, the site."""

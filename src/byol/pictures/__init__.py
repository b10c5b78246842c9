"""Charts, contact sheets, thumbnails, and rendering of HTML pages."""

"""The page that people look at: templates, files for the browser, and what is shown."""

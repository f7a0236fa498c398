"""The page that shows results: tables, figures and pictures of one run or of several."""

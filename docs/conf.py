"""How the site is built from these pages: `make docs`."""

project = "mtcore"
copyright = "the authors of mtcore, Apache-2.0"
extensions = ["myst_parser"]
myst_heading_anchors = 3
highlight_language = "none"  # indented blocks are commands, tables and run files; fenced ones name their language
html_theme = "furo"
html_title = "mtcore"
html_copy_source = False
html_show_sphinx = False

"""Characters of many scripts, drawn with the fonts that matplotlib installs."""

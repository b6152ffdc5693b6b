"""From files to samples and back; knows no model and no rank."""

"""The programs that are measured beside tidemill's predictor, each a process of its own."""

"""Before recording and any time later: what could go wrong, with numbers and advice."""

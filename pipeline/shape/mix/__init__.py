"""mix: shaped tables in, those with some groups left out, so that a training sees several rollouts in given shares."""

"""coursekit: deep learning for vision, in notebooks whose every claim is a check that runs."""

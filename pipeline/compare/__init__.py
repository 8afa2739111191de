"""Many algorithms on one snapshot: what is asked, how each trial's stages are answered, and the artifact that sums them up."""

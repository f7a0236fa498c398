"""Posed views of others, to be stored: folders in the layout of 3DIEBench, and tables with named latents."""

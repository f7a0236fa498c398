"""Rotations and scene latents as pure tensor maths.

Conventions, the same everywhere in the project:

- quaternions are scalar-last (x, y, z, w), as in SciPy and in the 3DIEBench files;
- Euler angles are extrinsic x, y, z, in radians: R = Rz Ry Rx (Blender's "XYZ", SciPy's "xyz");
- the relative rotation from view 1 to view 2 is the body-frame one, R1^-1 R2.
"""

"""The audit of a finished image: what OpenSCAP is asked, and what the results amount to.

`testudo image audit` boots the image and runs the auditors; this package works on files alone.
"""

"""De-identification: headers, free text, pixels, faces and file names.

What leaves holds what is on a list of what may leave; everything else is dropped. What cannot be judged is refused, so
that it lands in nobody's data set by oversight.
"""

"""Results as a page to look at.

Its files, lower ones first:

    sheet     lists of pictures as one PNG
    examples  queries to show, with their answers
    svg       bars and curves
    sections  sections of the page
    page      the page as one HTML file
"""

"""Results as a page to look at.

sheet     lists of pictures as one PNG
examples  queries whose answers are shown
svg       bars and curves
sections  parts of the page
page      the page as one HTML file
"""

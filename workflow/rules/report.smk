"""
placeholder
"""

"""What `import imgcls_search` offers: one function for each command, and a study, a trial and a model as objects.

The command line calls the same functions and adds nothing but words: it reads arguments and prints what comes back.
"""

"""One table by group: what the members of which groups may choose, how much of it, and which credentials they get.

Read in this order: `amounts` (quantities of Kubernetes), `table` (rules, and what they give somebody), `reading` (the
operator's text as rules, or what is wrong with it), `settings` (the section `Policy`).
"""

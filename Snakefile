"""Entry point in a clone. The workflow is in workflow/, the layout of the Snakemake workflow catalog."""


include: "workflow/Snakefile"


# An included file does not set the default target.
rule study:
    input:
        rules.all.input,

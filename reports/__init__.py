"""What every report is made of: Markdown tables, self-contained HTML pages, figures as drawings and as pixels."""

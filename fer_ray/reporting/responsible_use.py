"""What labels are not, and what they must not be used for: every page and document says it in these sentences."""

RESPONSIBLE_USE = (
    "Labels are apparent expressions, not felt emotions: what a face looks like to people who labeled photographs, "
    "not what a person feels.",
    "They are often wrong, and not equally often for all groups of people.",
    "In the European Union, Art. 5(1)(f) of the AI Act (Regulation (EU) 2024/1689) forbids AI systems that infer emotions of people "
    "at work and in schools, except for medical or safety reasons.",
    "Do not use them to judge individuals.",
)

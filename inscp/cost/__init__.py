"""What a run costs: floating-point operations, time, memory, energy, money and carbon dioxide."""

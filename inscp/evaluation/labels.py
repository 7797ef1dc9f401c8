"""What people call a measure in tables and plots; results, goals and trackers have its name."""

LABELS = {
    "in_language": "in the prompt's language",
    "in_script": "in the prompt's script",
    "ended": "end their turn",
    "looped": "repeat themselves",
    "copied": "copy the prompt",
    "sound_in_language": "sound and in the language",
    "in_language_if_sound": "in the language, of the sound",
    "answered_in/other": "in none of the languages",
    "words": "words an answer",
    "line_pass": "every line in the language",
    "word_pass": "no English word among others",
    "score_in_language": "score, 1 in another language",
    "score/turn_1": "score of the first turn",
    "score/turn_2": "score of the second turn",
    "pairwise/win": "won",
    "pairwise/tie": "tied",
    "pairwise/loss": "lost",
    "pairwise/consistent": "the same in either order",
    "unparsed": "judgement not readable",
    "bits_per_byte": "bits a byte",
    "kl": "divergence from the original, nats a token",
    "agreement": "share of tokens before they differ",
    "same_answer": "the original's answer",
}
"""Name -> label; a measure that is not there is called by its name."""

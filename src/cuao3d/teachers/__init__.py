"""Teachers: frozen image models that describe every pixel. A teacher is any object with a name, a width and a call."""

from cuao3d.teachers.known import TEACHERS, calibration_of, canonical, class_names_of, known_card, vocabulary_of
from cuao3d.teachers.load import load_teacher
from cuao3d.teachers.spec import TeacherSpec, parse_teacher, parse_teachers
from cuao3d.teachers.teacher import DEFAULT, Calibration, Teacher, TeacherCard, card_of, cards_of

__all__ = [
    "DEFAULT",
    "TEACHERS",
    "Calibration",
    "Teacher",
    "TeacherCard",
    "TeacherSpec",
    "calibration_of",
    "canonical",
    "card_of",
    "cards_of",
    "class_names_of",
    "known_card",
    "load_teacher",
    "parse_teacher",
    "parse_teachers",
    "vocabulary_of",
]

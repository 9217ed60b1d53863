"""Teachers: frozen image models that describe every pixel. A teacher is any object with a name, a width and a call."""

from cuao3d.teachers.known import TEACHERS, canonical, known_card
from cuao3d.teachers.load import load_teacher
from cuao3d.teachers.spec import TeacherSpec, parse_teacher, parse_teachers
from cuao3d.teachers.teacher import Teacher, TeacherCard, card_of, cards_of

__all__ = [
    "TEACHERS",
    "Teacher",
    "TeacherCard",
    "TeacherSpec",
    "canonical",
    "card_of",
    "cards_of",
    "known_card",
    "load_teacher",
    "parse_teacher",
    "parse_teachers",
]

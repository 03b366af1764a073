"""The tool of mutation testing: its table, and which lines it breaks."""

import mutants
import pytest


@pytest.mark.parametrize("pattern", mutants.TESTS)
def test_a_row_of_the_table_names_modules_and_test_files_that_are_there(pattern):
    modules = list((mutants.ROOT / mutants.LIB).glob(pattern))
    assert modules and all((mutants.ROOT / file).is_file() for file in mutants.tests_of(pattern))


def test_a_module_has_the_tests_of_the_first_row_that_fits():
    assert mutants.tests_of("alignment.py") != mutants.tests_of("stages/alignment.py")
    assert mutants.tests_of("stages/snapshots.py") == mutants.tests_of("stages/*.py")


SOURCE = '''"""1 + 1"""
Alias = int | None
def f(x: "1 + 1" = 2, y: list[3] | None = None) -> dict[4]:
    """5 < 6"""
    z: Annotated[float, 7] = 8.0
    if not x:
        raise ValueError(f"{x + 9}")
    if TYPE_CHECKING:
        import x
    return f"{x:.10f}" if x < z else None
'''


def test_what_decides_no_number_is_not_broken(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    found = {(name.removeprefix("Replace"), line) for _, name, _, line in mutants.places_in(tmp_path / "m.py")}
    assert found == {
        ("NumberReplacer", 3),
        ("NumberReplacer", 5),
        ("UnaryOperator_Delete_Not", 6),
        ("ComparisonOperator_Lt_LtE", 10),
        ("ComparisonOperator_Lt_GtE", 10),
    }


def test_a_sample_is_the_same_again_and_every_mutant_differs_from_its_module():
    source = next((mutants.ROOT / mutants.LIB).glob("weightings.py"))
    some = [mutants.mutant_at(place) for place in mutants.places_in(source)]
    assert len({mutant.after for mutant in some}) == len(some) > 20
    assert all(mutant.before != mutant.after and mutant.diff.count("\n") == 1 for mutant in some)
    assert some == [mutants.mutant_at(place) for place in mutants.places_in(source)]

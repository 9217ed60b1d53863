"""The product of matrices: the right choice on each processor, and equal results whatever the choice."""

import json
import threading

import pytest
import torch
from torch import nn

from cuao3d import products
from cuao3d.cli import main
from cuao3d.objective import teacher_loss
from cuao3d.products import (
    MM,
    OPERATOR,
    SETTING,
    Measured,
    add_product,
    fast_layers,
    fastest,
    matmul,
    using,
    ways,
    widen,
)
from cuao3d.sparse import convolve, multiply, sort_voxels

ROUNDED = 2e-3
"""Error of products whose operands were rounded to bfloat16."""

needs_operator = pytest.mark.skipif(OPERATOR not in products.measured(), reason="this PyTorch lacks the operator")


def measured(**gflops):
    names = {"mm": MM, "setting": SETTING, "operator": OPERATOR}
    return {names[name]: Measured(speed, 4e-7) for name, speed in gflops.items()}


@pytest.mark.parametrize(
    ("processor", "way"),
    {
        "AMD with AVX-512": (measured(mm=108, setting=253, operator=255), SETTING),
        "AMD with AVX-512, PyTorch without the setting": (measured(mm=108, operator=255), OPERATOR),
        "AMD with AVX2": (measured(mm=87, setting=87, operator=79), MM),
        "neither": (measured(mm=20, setting=20, operator=21), MM),
        "Intel": (measured(mm=150, setting=160, operator=155), MM),
        "PyTorch without oneDNN": (measured(mm=108), MM),
        "noise": (measured(mm=108, setting=130), MM),
    }.values(),
)
def test_the_fastest_exact_way_is_taken(processor, way):
    assert fastest(processor) == way


@pytest.mark.parametrize("way", [SETTING, OPERATOR])
def test_a_way_that_rounds_is_never_taken(way):
    assert fastest({MM: Measured(100, 4e-7), way: Measured(900, ROUNDED)}) == MM


def test_with_amx_the_setting_is_not_even_tried():
    assert ways(has_amx=True, has_setting=True, has_operator=True) == (MM, OPERATOR)
    assert ways(has_amx=False, has_setting=True, has_operator=True) == (MM, SETTING, OPERATOR)
    assert ways(has_amx=False, has_setting=False, has_operator=False) == (MM,)


def test_the_probe_finds_rounding():
    def rounds(a, b):
        return (a.bfloat16().float() @ b.bfloat16().float()).float()

    found = products._measure({MM: torch.mm, OPERATOR: rounds}, shapes=[(64, 96, 96)])
    assert found[MM].error < products.MAX_ERROR < 0.1 * found[OPERATOR].error


def test_an_operator_that_fails_is_left_out(monkeypatch):
    def fails(a, b, out=None):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(products, "_multiply_by_operator", fails)
    found = products.measured.__wrapped__()
    assert MM in found
    assert OPERATOR not in found


def test_the_probe_leaves_the_setting_as_it_was(monkeypatch):
    monkeypatch.setattr(products, "candidates", lambda: (MM, SETTING))
    before = torch.backends.mkldnn.matmul.fp32_precision
    with using(MM):
        products.measured.__wrapped__()
        assert torch.backends.mkldnn.matmul.fp32_precision == before
    with using(SETTING):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    with using(MM):
        assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine that has kept no way yet; what it measures is changed through the dictionary that is returned."""
    gflops = {"mm": 100, "operator": 100}
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(products, "candidates", lambda: (MM, OPERATOR))
    monkeypatch.setattr(products, "measured", lambda: measured(**gflops))
    return gflops


def test_all_processes_of_a_machine_multiply_alike(machine):
    """A way is taken once: what a busy moment makes of the ways later changes nothing."""
    assert products.kept_way() == MM
    machine["operator"] = 200
    assert products.kept_way() == MM


def test_another_processor_of_the_same_home_folder_measures_for_itself(machine, monkeypatch):
    assert products.kept_way() == MM
    machine["operator"] = 200
    with monkeypatch.context() as patched:
        patched.setattr(products, "processor", lambda: "another")
        assert products.kept_way() == OPERATOR
    assert products.kept_way() == MM


@pytest.mark.parametrize("content", ["", "[1]", '{"PLACE": "guess"}'])
def test_a_damaged_note_of_the_way_is_measured_anew(machine, tmp_path, content):
    machine["operator"] = 200
    file = tmp_path / "cache" / "products.json"
    assert products.kept_way() == OPERATOR
    file.write_text(content.replace("PLACE", next(iter(json.loads(file.read_text())))))
    assert products.kept_way() == OPERATOR
    assert OPERATOR in json.loads(file.read_text()).values()


def test_where_nothing_can_be_kept_each_process_measures(machine, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert products.kept_way() == MM
    machine["operator"] = 200
    assert products.kept_way() == OPERATOR


@needs_operator
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 7), (300, 288, 96), (0, 3, 4), (9, 96, 3200)])
def test_the_operator_multiplies_as_torch_mm(shape, monkeypatch):
    monkeypatch.setattr(products, "LARGEST_RESULT", 10_000)  # so that the last shape takes several blocks of rows
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner), torch.randn(columns, inner).T
    with using(OPERATOR):
        result, into = matmul(a, b), torch.full((rows, columns), torch.nan)
        assert matmul(a, b, out=into) is into
        total = torch.ones(rows, columns)
        add_product(total, a, b)
    assert torch.equal(into, result)
    torch.testing.assert_close(result, a @ b, rtol=2e-6, atol=2e-6 * inner**0.5)
    torch.testing.assert_close(total, result + 1)


@needs_operator
def test_the_operator_has_the_gradients_of_a_product():
    a, b = torch.randn(6, 4, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    upstream = torch.randn(6, 3)
    wanted = torch.autograd.grad((a @ b * upstream).sum(), (a, b))
    with using(OPERATOR):
        found = torch.autograd.grad((matmul(a, b) * upstream).sum(), (a, b))
        assert not torch.autograd.grad((matmul(a, b.detach()) * upstream).sum(), a)[0].requires_grad
    torch.testing.assert_close(found, wanted)


@needs_operator
def test_convolutions_heads_objective_and_teachers_go_through_it(monkeypatch):
    """With the operator broken on purpose, each of them returns what it returned."""
    voxels = sort_voxels(torch.tensor([[0, x, y, 0] for x in range(20) for y in range(9)]))[0]
    x, kernel, head = torch.randn(len(voxels), 8), torch.randn(27, 8, 6), torch.randn(8, 5)
    layer, targets = nn.Linear(8, 5).requires_grad_(False), torch.randn(len(voxels), 5)
    works = {
        "convolution": lambda: convolve(x, kernel, voxels.neighbours(3)),
        "convolution of many voxels": lambda: convolve(x, kernel, voxels.neighbours(3)),
        "naive convolution": lambda: convolve(x, kernel, voxels.neighbours(3), "naive"),
        "head": lambda: multiply(x, head),
        "cosine": lambda: teacher_loss(x, head, targets),
        "l1": lambda: teacher_loss(x, head, targets, "l1"),
        "teacher": lambda: layer(x),
        "layer without a bias": lambda: nn.functional.linear(input=x, weight=layer.weight),
    }
    with torch.no_grad():
        for name, work in works.items():
            monkeypatch.setattr("cuao3d.sparse.runs.SMALL", 0 if "many" in name else 2000)
            with using(MM):
                wanted = work()
            with using(OPERATOR), fast_layers(x.device):
                torch.testing.assert_close(work(), wanted, rtol=1e-4, atol=1e-5)
                with monkeypatch.context() as patched:
                    patched.setattr(torch.ops.mkldnn, "_linear_pointwise", _shifted(torch.ops.mkldnn))
                    assert not torch.allclose(work(), wanted), f"{name} multiplies in another way"


def _shifted(operators):  # the cosine would not notice a factor
    original = operators._linear_pointwise
    return lambda a, weight, *rest: original(a, weight, *rest) + 0.5


@needs_operator
def test_same_bytes_twice_and_with_one_thread_or_more_than_cores():
    voxels = sort_voxels(torch.tensor([[0, x, y, 0] for x in range(60) for y in range(60)]))[0]
    x, kernel = torch.randn(len(voxels), 8), torch.randn(27, 8, 6)
    threads, results = torch.get_num_threads(), []
    try:
        for way in (MM, OPERATOR):
            for count in (1, 1, 2, 5):
                torch.set_num_threads(count)
                with using(way):
                    results.append(convolve(x, kernel, voxels.neighbours(3)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[4], results[5])
    for result in results:
        torch.testing.assert_close(result, results[0], rtol=2e-6, atol=1e-5)


def test_threads_that_multiply_at_once_choose_once(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(products, "_process", products._Process())
    monkeypatch.setattr(products, "measured", lambda: calls.append(0) or measured(mm=1))
    threads = [threading.Thread(target=matmul, args=(torch.ones(2, 2), torch.ones(2, 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


@pytest.mark.parametrize("is_emulated", [True, False])
def test_half_precision_without_arithmetic_is_widened(is_emulated, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not is_emulated)
    assert widen(torch.ones(1, dtype=torch.float16)).dtype == torch.float32
    assert widen(torch.ones(1, dtype=torch.bfloat16)).dtype == (torch.float32 if is_emulated else torch.bfloat16)
    assert widen(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    assert widen(torch.ones(1, dtype=torch.float16, device="meta")).dtype == torch.float16


@pytest.mark.parametrize("backend", ["runs", "naive"])
def test_float16_on_a_cpu_is_computed_in_float32(backend):
    voxels = sort_voxels(torch.tensor([[0, x, 0, 0] for x in range(9)]))[0]
    x, kernel = torch.randn(9, 8).half(), torch.randn(27, 8, 6).half()
    wanted = convolve(x.float(), kernel.float(), voxels.neighbours(3), backend)
    result = convolve(x, kernel, voxels.neighbours(3), backend)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result, wanted.half())


def test_version_says_how_matrices_are_multiplied(capsys):
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert "cuao3d " in out
    assert f"float32 products by {products.chosen()}" in out

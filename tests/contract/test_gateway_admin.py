"""What operators can do over HTTP: keys, codes, cars, status and stories."""

import hashlib

import msgspec

from terafleet.control.adapters.catalogue_memory import MemoryCatalogue
from terafleet.control.gateway.keys import code_sha256
from terafleet.control.ports import CatalogueUnavailable, CodeRow, KeyRow, VehicleRow
from terafleet.core.ids import VehicleId
from terafleet.core.reasons import Refused
from terafleet.protocol.admin import (
    CodeCreated,
    KeyCreated,
    KeyList,
    KeyView,
    Status,
    StoryPage,
    VehicleChanged,
    VehiclesPage,
)
from terafleet.protocol.shard import (
    Answered,
    DrainVehicle,
    GetStatus,
    GetStory,
    GetVehiclePolicy,
    ListVehicles,
    RemoveVehicle,
    SetVehiclePolicy,
    Story,
    StoryLine,
    VehicleList,
    VehiclePolicy,
)
from tests.contract.fake_answers import shard_status, vehicle_view
from tests.contract.gateway_app import START_MS, Stage, code_of, decoded, serving

CAR = VehicleId("veh-abcdefghij")


def enrolled(stage: Stage) -> None:
    stage.catalogue.add_code(CodeRow(b"1" * 32, START_MS, START_MS + 1))
    row = VehicleRow(CAR, "a car", "UABC", START_MS)
    assert stage.catalogue.use_code(b"1" * 32, row, START_MS) is None


async def test_a_key_is_made_used_listed_and_revoked() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        response = await client.post("/admin/v1/keys", json={"name": "a customer"})
        assert response.status_code == 201
        made = decoded(response, KeyCreated)
        assert made.key.role == "customer"
        assert made.key.hint == made.secret[:7]
        bearer = {"authorization": f"Bearer {made.secret}"}
        assert (await client.get("/v1/models", headers=bearer)).status_code == 200
        response = await client.get("/admin/v1/keys")
        assert made.key in decoded(response, KeyList).keys
        assert made.secret not in response.text
        stage.now_ms += 5
        revoked = decoded(await client.delete(f"/admin/v1/keys/{made.key.key_id}"), KeyView)
        assert revoked.revoked_ms == START_MS + 5
        again = decoded(await client.delete(f"/admin/v1/keys/{made.key.key_id}"), KeyView)
        assert again == revoked
        refused = await client.get("/v1/models", headers=bearer)
        assert code_of(refused) == "revoked_api_key"


async def test_each_key_is_of_a_customer_of_its_own_unless_asked_otherwise() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        made = [
            decoded(await client.post("/admin/v1/keys", json=wanted), KeyCreated)
            for wanted in (
                {"name": "a"},
                {"name": "b"},
                {"name": "c", "role": "operator", "customer_id": "cust_mine"},
            )
        ]
    assert len({key.key.customer_id for key in made}) == 3
    assert made[2].key.customer_id == "cust_mine"
    assert made[2].key.role == "operator"
    assert len({key.secret for key in made}) == 3


async def test_what_a_key_can_not_be() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        for wanted, param in (
            ({"name": ""}, "name"),
            ({"name": "a" * 101}, "name"),
            ({"name": "a\nb"}, "name"),
            ({"name": "a\u202eb"}, "name"),
            ({"name": "a", "role": "owner"}, "role"),
            ({"name": "a", "customer_id": ""}, "customer_id"),
            ({"name": "a", "customer_id": "a b"}, "customer_id"),
        ):
            response = await client.post("/admin/v1/keys", json=wanted)
            assert code_of(response) == "invalid_value", wanted
            assert response.json()["error"]["param"] == param
    assert len(stage.catalogue.keys()) == 1


async def test_an_operator_can_not_lock_everybody_out() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        (own,) = stage.catalogue.keys()
        assert code_of(await client.delete(f"/admin/v1/keys/{own.key_id}")) == "invalid_value"
        assert (await client.get("/admin/v1/keys")).status_code == 200
        assert code_of(await client.delete("/admin/v1/keys/key_none")) == "key_not_found"


async def test_a_code_is_shown_once_and_kept_as_a_hash() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        response = await client.post("/admin/v1/enrolment_codes", json={"valid_s": 60})
        made = decoded(response, CodeCreated)
    assert made.expires_ms == START_MS + 60_000
    plain = made.code.replace("-", "")
    assert len(plain) == 20
    assert code_sha256(made.code) == hashlib.sha256(plain.encode()).digest()
    assert code_sha256(f" {made.code.upper()} ") == code_sha256(made.code)
    row = VehicleRow(CAR, "a car", "UABC", START_MS)
    assert stage.catalogue.use_code(code_sha256(made.code), row, START_MS) is None


async def test_how_long_a_code_can_be_valid() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        for valid_s in (0, -1, 30 * 86_400 + 1, 2**70):
            response = await client.post("/admin/v1/enrolment_codes", json={"valid_s": valid_s})
            assert code_of(response) == "invalid_value"


async def test_cars_are_listed_drained_and_removed() -> None:
    stage = Stage()
    enrolled(stage)
    stage.shard.answers[ListVehicles] = VehicleList((vehicle_view(CAR),))
    async with serving(stage, stage.add_key("operator")) as client:
        page = decoded(await client.get("/admin/v1/vehicles"), VehiclesPage)
        assert page.vehicles == (vehicle_view(CAR),)
        for action, is_draining in (("drain", True), ("undrain", False)):
            response = await client.post(f"/admin/v1/vehicles/{CAR}/{action}")
            assert decoded(response, VehicleChanged).vehicle_id == CAR
            assert stage.shard.asked(DrainVehicle)[-1] == DrainVehicle(CAR, is_draining)
        response = await client.delete(f"/admin/v1/vehicles/{CAR}")
        assert decoded(response, VehicleChanged).vehicle_id == CAR
        assert stage.shard.asked(RemoveVehicle) == [RemoveVehicle(CAR)]
        row = stage.catalogue.vehicle(CAR)
        assert row is not None
        assert row.removed_ms == START_MS


async def test_an_owner_policy_is_set_shown_and_taken_back() -> None:
    stage = Stage()
    enrolled(stage)
    policy = {"charge": {"soc_percent_min": 60}, "hours": {"compute": []}}
    path = f"/admin/v1/vehicles/{CAR}/policy"
    async with serving(stage, stage.add_key("operator")) as client:
        response = await client.put(path, json=policy)
        assert decoded(response, VehicleChanged).vehicle_id == CAR
        (asked,) = stage.shard.asked(SetVehiclePolicy)
        assert msgspec.json.decode(asked.policy) == policy
        stage.shard.answers[GetVehiclePolicy] = VehiclePolicy(asked.policy)
        assert (await client.get(path)).json() == policy
        await client.delete(path)
        assert stage.shard.asked(SetVehiclePolicy)[-1] == SetVehiclePolicy(CAR, b"")
        stage.shard.answers[GetVehiclePolicy] = VehiclePolicy(b"")
        assert (await client.get(path)).json() == {}


async def test_a_policy_that_is_none_is_refused_by_the_path_of_its_faults() -> None:
    stage = Stage()
    enrolled(stage)
    path = f"/admin/v1/vehicles/{CAR}/policy"
    async with serving(stage, stage.add_key("operator")) as client:
        for body in ({"charge": {"soc_percent_min": "much"}}, {"charge": 3}, {"nothing": 1}):
            response = await client.put(path, json=body)
            assert code_of(response) == "invalid_value"
            assert response.json()["error"]["param"] in ("charge.soc_percent_min", *body)
        for odd in (b"[]", b"\xff", b"{", b"3"):
            headers = {"content-type": "application/json"}
            response = await client.put(path, content=odd, headers=headers)
            assert response.status_code == 400
        assert code_of(await client.put(f"{path}x", json={})) == "not_found"
        stage.shard.questions.clear()
        unknown = path.replace(CAR, "veh-unknownnnn")
        assert code_of(await client.put(unknown, json={})) == "vehicle_not_found"
        assert stage.shard.questions == []


async def test_an_unknown_car_is_not_found() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        for path in ("veh-unknownnnn", "..%2f", "x", "veh-ABCDEFGHIJ"):
            response = await client.delete(f"/admin/v1/vehicles/{path}")
            assert code_of(response) in ("vehicle_not_found", "not_found")
        response = await client.post("/admin/v1/vehicles/veh-unknownnnn/drain")
        assert code_of(response) == "vehicle_not_found"
        assert stage.shard.questions == []


async def test_a_removal_that_the_shard_did_not_hear_is_done_by_asking_again() -> None:
    stage = Stage()
    enrolled(stage)
    async with serving(stage, stage.add_key("operator")) as client:
        await stage.shard.bus.close()
        response = await client.delete(f"/admin/v1/vehicles/{CAR}")
        assert code_of(response) == "shard_unavailable"
        assert response.headers["retry-after"] == "2"
        await stage.shard.start()
        assert (await client.delete(f"/admin/v1/vehicles/{CAR}")).status_code == 200
        assert stage.shard.asked(RemoveVehicle) == [RemoveVehicle(CAR)]
        stage.shard.answers[RemoveVehicle] = Answered(Refused.VEHICLE_UNKNOWN)
        assert (await client.delete(f"/admin/v1/vehicles/{CAR}")).status_code == 200
        stage.shard.answers[RemoveVehicle] = Answered(Refused.STORAGE_FULL, "full")
        response = await client.delete(f"/admin/v1/vehicles/{CAR}")
        assert code_of(response) == "storage_full"
        assert response.headers["retry-after"] == "60"


async def test_each_refusal_of_the_shard_has_a_code() -> None:
    stage = Stage()
    enrolled(stage)
    codes = []
    async with serving(stage, stage.add_key("operator")) as client:
        for refused in Refused:
            stage.shard.answers[DrainVehicle] = Answered(refused)
            codes.append(code_of(await client.post(f"/admin/v1/vehicles/{CAR}/drain")))
    assert len(set(codes)) == len(Refused), "no two refusals are told alike"


async def test_status_is_told_also_when_the_shard_is_silent() -> None:
    stage = Stage()
    stage.shard.answers[GetStatus] = shard_status(batches_open=3)
    async with serving(stage, stage.add_key("operator")) as client:
        status = decoded(await client.get("/admin/v1/status"), Status)
        assert status.shard == shard_status(batches_open=3)
        assert status.is_bus_connected
        assert not status.is_storage_full
        await stage.shard.bus.close()
        stage.is_storage_full = True
        status = decoded(await client.get("/admin/v1/status"), Status)
        assert status.shard is None
        assert status.is_storage_full


async def test_a_story_is_told_from_its_beginning() -> None:
    stage = Stage()
    lines = (StoryLine(2, 20, "later"), StoryLine(1, 10, "sooner"))
    stage.shard.answers[GetStory] = Story(lines, is_complete=False)
    async with serving(stage, stage.add_key("operator")) as client:
        page = decoded(await client.get("/admin/v1/story/batch_12?limit=7"), StoryPage)
        assert page == StoryPage(lines[::-1], is_complete=False)
        assert stage.shard.asked(GetStory) == [GetStory("batch_12", 7)]
        for query in ("limit=0", "limit=1001", "limit=-1", "limit=x"):
            response = await client.get(f"/admin/v1/story/batch_12?{query}")
            assert code_of(response) == "invalid_value"
        assert code_of(await client.get("/admin/v1/story/a%20b")) == "invalid_value"


async def test_a_full_catalogue_is_told() -> None:
    stage = Stage(catalogue=MemoryCatalogue(rows_max=1))
    async with serving(stage, stage.add_key("operator")) as client:
        response = await client.post("/admin/v1/keys", json={"name": "a"})
    assert code_of(response) == "storage_full"


class AwayCatalogue(MemoryCatalogue):
    """Its server is away from when a test says so."""

    is_away = False

    def key_by_secret(self, secret_sha256: bytes) -> KeyRow | None:
        if self.is_away:
            raise CatalogueUnavailable("connection refused")
        return super().key_by_secret(secret_sha256)


async def test_a_catalogue_out_of_reach_is_told_and_may_be_asked_again() -> None:
    catalogue = AwayCatalogue()
    stage = Stage(catalogue)
    async with serving(stage, stage.add_key("operator")) as client:
        catalogue.is_away = True
        response = await client.get("/admin/v1/keys")
        assert code_of(response) == "overloaded"
        assert response.headers["retry-after"] == "2"
        assert "x-should-retry" not in response.headers
        assert "refused" not in response.text
        catalogue.is_away = False
        assert (await client.get("/admin/v1/keys")).status_code == 200

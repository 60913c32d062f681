//! SunSpec batteries of 10 kW on Modbus TCP: `sunspecserver ADDRESS UNIT...`, one for each unit.
//!
//! Maps and encodings are those of the crate `sunspec`, the transport is `tokio-modbus`: neither
//! shares code with what derops uses. It writes "ready" once it listens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sunspec::models::model1::Common;
use sunspec::models::model701::{AcType, DerMeasureAc};
use sunspec::models::model702::DerCapacity;
use sunspec::models::model703::{DerEnterService, Es};
use sunspec::models::model704::{DerCtlAc, WMaxLimPctEna, WSetEna, WSetMod};
use sunspec::models::model713::DerStorageCapacity;
use sunspec::models::model715::{DerCtl, LocRemCtl};
use sunspec::{Group, Model, Point, Value};
use tokio::net::TcpListener;
use tokio_modbus::prelude::{ExceptionCode, Request, Response, SlaveRequest};
use tokio_modbus::server::tcp::{accept_tcp_connection, Server};

const BASE: u16 = 40000;
const MOST_WATTS: f64 = 10_000.0;
const MOST_CHARGE_WATTS: f64 = 8_000.0;
const RAMP_WATTS_PER_SECOND: f64 = 5_000.0;
const CAPACITY_WATT_HOURS: f64 = 20_000.0;

type Writable = Vec<std::ops::Range<usize>>;

/// One unit: its registers, and what makes them change.
struct Battery {
    registers: Vec<u16>,
    places: HashMap<u16, usize>,
    writable: Writable,
    watts: f64,
    charge_percent: f64,
    injected_watt_hours: f64,
    absorbed_watt_hours: f64,
    seen: Instant,
    reverts_at: Option<Instant>,
}

impl Battery {
    fn new() -> Self {
        let mut it = Self {
            registers: vec![0x5375, 0x6e53],
            places: HashMap::new(),
            writable: Vec::new(),
            watts: 0.0,
            charge_percent: 50.0,
            injected_watt_hours: 0.0,
            absorbed_watt_hours: 0.0,
            seen: Instant::now(),
            reverts_at: None,
        };
        it.add::<Common>(0);
        it.add::<DerMeasureAc>(0);
        it.add::<DerCapacity>(0);
        it.add::<DerEnterService>(0);
        it.add::<DerCtlAc>(8); // four groups of two: power factors
        it.add::<DerStorageCapacity>(0);
        it.add::<DerCtl>(0);
        it.registers.extend([0xffff, 0]);
        it.set(&Common::MN, "derops tests".to_string());
        it.set(&Common::MD, "Battery in Rust".to_string());
        it.set(&Common::VR, Some("1.0".to_string()));
        it.set(&Common::SN, "1".to_string());
        it.set(&DerMeasureAc::AC_TYPE, AcType::ThreePhase);
        it.set(&DerMeasureAc::W_SF, Some(0));
        it.set(&DerMeasureAc::VAR, Some(0));
        it.set(&DerMeasureAc::VAR_SF, Some(0));
        it.set(&DerMeasureAc::LNV, Some(2305));
        it.set(&DerMeasureAc::V_SF, Some(-1));
        it.set(&DerMeasureAc::HZ, Some(50_010));
        it.set(&DerMeasureAc::HZ_SF, Some(-3));
        it.set(&DerMeasureAc::TOT_WH_SF, Some(0));
        it.set(&DerMeasureAc::TMP_AMB, None);
        it.set(&DerMeasureAc::TMP_CAB, None);
        it.set(&DerMeasureAc::TMP_SF, None);
        it.set(&DerCapacity::W_MAX_RTG, Some(1000));
        it.set(&DerCapacity::W_CHA_RTE_MAX_RTG, Some(800));
        it.set(&DerCapacity::W_MAX, Some(1000));
        it.set(&DerCapacity::W_CHA_RTE_MAX, Some(800));
        it.set(&DerCapacity::W_DIS_CHA_RTE_MAX, Some(1000));
        it.set(&DerCapacity::W_SF, Some(1));
        it.set(&DerEnterService::ES, Some(Es::Enabled));
        it.set(&DerCtlAc::W_MAX_LIM_PCT_ENA, Some(WMaxLimPctEna::Disabled));
        it.set(&DerCtlAc::W_MAX_LIM_PCT, Some(1000));
        it.set(&DerCtlAc::W_MAX_LIM_PCT_SF, Some(-1));
        it.set(&DerCtlAc::W_SET_ENA, Some(WSetEna::Disabled));
        it.set(&DerCtlAc::W_SET_MOD, Some(WSetMod::Watts));
        it.set(&DerCtlAc::W_SET, Some(0));
        it.set(&DerCtlAc::W_SET_RVRT, Some(0));
        it.set(&DerCtlAc::W_SET_RVRT_TMS, Some(0));
        it.set(&DerCtlAc::W_SET_RVRT_REM, Some(0));
        it.set(&DerCtlAc::W_SET_SF, Some(0));
        it.set(&DerCtlAc::W_SET_PCT, None);
        it.set(&DerStorageCapacity::WH_RTG, Some(2000));
        it.set(&DerStorageCapacity::WH_SF, Some(1));
        it.set(&DerStorageCapacity::PCT_SF, Some(-1));
        it.set(&DerCtl::LOC_REM_CTL, Some(LocRemCtl::Remote));
        it.may_write(&DerEnterService::ES);
        it.may_write(&DerCtlAc::W_MAX_LIM_PCT_ENA);
        it.may_write(&DerCtlAc::W_MAX_LIM_PCT);
        it.may_write(&DerCtlAc::W_SET_ENA);
        it.may_write(&DerCtlAc::W_SET_MOD);
        it.may_write(&DerCtlAc::W_SET);
        it.may_write(&DerCtlAc::W_SET_RVRT);
        it.may_write(&DerCtlAc::W_SET_ENA_RVRT);
        it.may_write(&DerCtlAc::W_SET_RVRT_TMS);
        it.live();
        it
    }

    fn add<M: Model>(&mut self, more: u16) {
        self.registers.extend([M::ID, M::LEN + more]);
        self.places.insert(M::ID, self.registers.len());
        let end = self.registers.len() + usize::from(M::LEN + more);
        self.registers.resize(end, 0xffff);
    }

    fn place<M: Model, T: Value>(&self, point: &Point<M, T>) -> std::ops::Range<usize> {
        let start = self.places[&M::ID] + usize::from(point.offset);
        start..start + usize::from(point.length)
    }

    fn set<M: Model + Group, T: Value>(&mut self, point: &Point<M, T>, value: T) {
        let place = self.place(point);
        let words = value.encode();
        self.registers[place.clone()].fill(0);
        self.registers[place.start..place.start + words.len()].copy_from_slice(&words);
    }

    fn get<M: Model, T: Value>(&self, point: &Point<M, T>) -> T {
        T::decode(&self.registers[self.place(point)]).expect("what it holds is of its type")
    }

    fn may_write<M: Model, T: Value>(&mut self, point: &Point<M, T>) {
        assert!(point.writable, "the model says that it is for reading");
        let place = self.place(point);
        self.writable.push(place);
    }

    /// Do what has happened since it was last looked at.
    fn live(&mut self) {
        let now = Instant::now();
        let seconds = (now - self.seen).as_secs_f64();
        self.seen = now;
        if self.reverts_at.is_some_and(|at| at <= now) {
            self.reverts_at = None;
            self.set(&DerCtlAc::W_SET_ENA, Some(WSetEna::Disabled));
        }
        let left = self.reverts_at.map_or(0, |at| (at - now).as_secs() as u32);
        self.set(&DerCtlAc::W_SET_RVRT_REM, Some(left));
        let step = RAMP_WATTS_PER_SECOND * seconds;
        self.watts += (self.wanted_watts() - self.watts).clamp(-step, step);
        let watt_hours = self.watts * seconds / 3600.0;
        self.injected_watt_hours += watt_hours.max(0.0);
        self.absorbed_watt_hours -= watt_hours.min(0.0);
        self.charge_percent -= 100.0 * watt_hours / CAPACITY_WATT_HOURS;
        self.charge_percent = self.charge_percent.clamp(0.0, 100.0);
        self.set(&DerMeasureAc::W, Some(self.watts.round() as i16));
        self.set(
            &DerMeasureAc::TOT_WH_INJ,
            Some(self.injected_watt_hours as u64),
        );
        self.set(
            &DerMeasureAc::TOT_WH_ABS,
            Some(self.absorbed_watt_hours as u64),
        );
        let charge = (self.charge_percent * 10.0).round() as u16;
        self.set(&DerStorageCapacity::SOC, Some(charge));
    }

    fn wanted_watts(&self) -> f64 {
        if !matches!(self.get(&DerEnterService::ES), Some(Es::Enabled))
            || !matches!(self.get(&DerCtlAc::W_SET_ENA), Some(WSetEna::Enabled))
        {
            return 0.0;
        }
        let asked = self.get(&DerCtlAc::W_SET).map_or(0.0, f64::from);
        asked.clamp(-MOST_CHARGE_WATTS, MOST_WATTS)
    }

    fn read(&mut self, address: u16, count: u16) -> Result<Response, ExceptionCode> {
        self.live();
        let start = usize::from(
            address
                .checked_sub(BASE)
                .ok_or(ExceptionCode::IllegalDataAddress)?,
        );
        let words = self.registers.get(start..start + usize::from(count));
        let words = words.ok_or(ExceptionCode::IllegalDataAddress)?;
        Ok(Response::ReadHoldingRegisters(words.to_vec()))
    }

    fn write(&mut self, address: u16, words: &[u16]) -> Result<(), ExceptionCode> {
        self.live();
        let start = usize::from(
            address
                .checked_sub(BASE)
                .ok_or(ExceptionCode::IllegalDataAddress)?,
        );
        let place = start..start + words.len();
        let may = |at: usize| self.writable.iter().any(|each| each.contains(&at));
        if !place.clone().all(may) {
            return Err(ExceptionCode::IllegalDataAddress);
        }
        self.registers[place.clone()].copy_from_slice(words);
        let timer = self.place(&DerCtlAc::W_SET_RVRT_TMS);
        if place.contains(&timer.start) {
            let seconds = self.get(&DerCtlAc::W_SET_RVRT_TMS).unwrap_or(0);
            let after = Duration::from_secs(u64::from(seconds));
            self.reverts_at = (seconds > 0).then(|| Instant::now() + after);
        }
        Ok(())
    }
}

/// All units behind one address.
struct Units(Mutex<HashMap<u8, Battery>>);

impl tokio_modbus::server::Service for Units {
    type Request = SlaveRequest<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = std::future::Ready<Result<Response, ExceptionCode>>;

    fn call(&self, asked: Self::Request) -> Self::Future {
        let mut units = self.0.lock().expect("nobody dies with it");
        let answer = match (units.get_mut(&asked.slave), asked.request) {
            (None, _) => Err(ExceptionCode::GatewayTargetDevice),
            (Some(unit), Request::ReadHoldingRegisters(address, count)) => {
                unit.read(address, count)
            }
            (Some(unit), Request::WriteSingleRegister(address, word)) => unit
                .write(address, &[word])
                .map(|()| Response::WriteSingleRegister(address, word)),
            (Some(unit), Request::WriteMultipleRegisters(address, words)) => unit
                .write(address, &words)
                .map(|()| Response::WriteMultipleRegisters(address, words.len() as u16)),
            _ => Err(ExceptionCode::IllegalFunction),
        };
        std::future::ready(answer)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().expect("ADDRESS UNIT...");
    let numbers = arguments.map(|each| each.parse().expect("UNIT is a number"));
    let units = Arc::new(Units(Mutex::new(
        numbers.map(|each| (each, Battery::new())).collect(),
    )));
    let listener = TcpListener::bind(&address).await?;
    println!("ready");
    let connected = |stream, peer| {
        let units = Arc::clone(&units);
        async move { accept_tcp_connection(stream, peer, move |_| Ok(Some(Arc::clone(&units)))) }
    };
    let failed = |error| eprintln!("{error}");
    Server::new(listener).serve(&connected, failed).await
}

//! The network of a namespace: loopback up, and every address there is on it.
//!
//! Owns the few messages of rtnetlink(7) that takes. With the route `local default dev lo` the kernel holds every
//! address for the machine's own, so that whatever a program connects to, it connects to a listener here.

use std::net::Ipv4Addr;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{netdevice, recv, send, socket_with};

/// On the loopback interface beside 127.0.0.1: resolvers ask for addresses of a family only where one of it is there
/// that is not loopback's (RFC 3493 §6.1, `AI_ADDRCONFIG`). Of the network for benchmarks (RFC 2544).
const OWN: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RT_TABLE_LOCAL: u8 = 255;
const RT_SCOPE_HOST: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_LOCAL: u8 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Does all of it in the namespace of this process. True when IPv6 is there too.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn set_up() -> rustix::io::Result<bool> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let lo = netdevice::name_to_index(&socket, "lo")?;
    ask(&socket, RTM_NEWLINK, &[&[0; 4], &lo.to_ne_bytes()[..], &IFF_UP.to_ne_bytes(), &IFF_UP.to_ne_bytes()])?;
    let own = OWN.octets();
    let head = [AF_INET, 32, 0, RT_SCOPE_HOST];
    ask(&socket, RTM_NEWADDR, &[&head, &lo.to_ne_bytes(), &attribute(IFA_LOCAL, own), &attribute(IFA_ADDRESS, own)])?;
    let route = |family| {
        let head = [family, 0, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL];
        ask(&socket, RTM_NEWROUTE, &[&head, &[0; 4], &attribute(RTA_OIF, lo.to_ne_bytes())])
    };
    route(AF_INET)?;
    // A kernel without IPv6 has no way out by it either.
    Ok(route(AF_INET6).is_ok())
}

fn attribute(kind: u16, value: [u8; 4]) -> [u8; 8] {
    let [a, b] = 8_u16.to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    let [e, f, g, h] = value;
    [a, b, c, d, e, f, g, h]
}

/// Sends one message and reads the answer.
fn ask(socket: &OwnedFd, kind: u16, parts: &[&[u8]]) -> rustix::io::Result<()> {
    let body = parts.concat();
    let len = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    // Length, type, flags, sequence, port; in the machine's own order.
    let head = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]];
    send(socket, &[&head.concat()[..], &body].concat(), SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (len, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    let kind = answer.get(4..6).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer[..len].get(16..20).and_then(|four| four.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw_os_error(-code)),
        _ => Err(Errno::PROTO),
    }
}

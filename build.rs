//! Generates the client and server of the manager API from the table of its methods.

use tonic_build::manual::{Builder, Method, Service};

/// Name in Rust, name on the wire, request, response. Types are those of `control::rpc::messages`.
const METHODS: &[(&str, &str, &str, &str)] = &[
    ("create_network", "CreateNetwork", "NewNetwork", "NetworkReply"),
    ("remove_network", "RemoveNetwork", "RemoveNetwork", "Done"),
    ("list_networks", "ListNetworks", "ListNetworks", "Networks"),
    ("inspect_network", "InspectNetwork", "InspectNetwork", "NetworkDetail"),
    ("attach", "Attach", "Attach", "Attached"),
    ("detach", "Detach", "Detach", "Done"),
    ("token", "Token", "TokenRequest", "Token"),
    ("issue_token", "IssueToken", "IssueToken", "IssuedToken"),
    ("list_tokens", "ListTokens", "ListTokens", "TokenList"),
    ("remove_token", "RemoveToken", "RemoveToken", "Done"),
    ("list_nodes", "ListNodes", "ListNodes", "Nodes"),
    ("renew", "Renew", "Renew", "Renewed"),
    ("leave", "Leave", "Leave", "Done"),
    ("remove_node", "RemoveNode", "RemoveNode", "RemovedNode"),
    ("inspect_node", "InspectNode", "InspectNode", "NodeDetail"),
    ("change_node", "ChangeNode", "ChangeNode", "ChangedNode"),
    ("rotate_ca", "RotateCa", "RotateCa", "Done"),
    ("presence", "Presence", "PresenceRequest", "Presence"),
    ("store_access", "StoreAccess", "StoreAccessRequest", "StoreAccess"),
    ("ca_status", "CaStatus", "CaStatusRequest", "CaStatus"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let service = Service::builder().name("Manager").package("overlayd.v1");
    let service = METHODS.iter().fold(service, |service, &(name, route, input, output)| {
        let method = Method::builder().name(name).route_name(route);
        service.method(with_types(method, input, output).build())
    });
    let session = Method::builder().name("session").route_name("Session").server_streaming();
    let session = with_types(session, "SessionRequest", "Piece");
    let service = service.method(session.codec_path("crate::control::rpc::pieces::SessionCodec").build());
    Builder::new().compile(&[service.build()]);
}

fn with_types(
    method: tonic_build::manual::MethodBuilder,
    input: &str,
    output: &str,
) -> tonic_build::manual::MethodBuilder {
    const MESSAGES: &str = "crate::control::rpc::messages";
    method
        .input_type(format!("{MESSAGES}::{input}"))
        .output_type(format!("{MESSAGES}::{output}"))
        .codec_path("crate::control::rpc::codec::JsonCodec")
}

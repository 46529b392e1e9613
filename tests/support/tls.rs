//! A TLS front end on 127.0.0.1 for a server without TLS, with a certificate of an authority made
//! for it. It runs on its own threads until the process ends.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::rustls::{CipherSuite, ServerConfig};

/// The name in the certificate.
const NAME: &str = "localhost";

pub(crate) struct TlsFront {
    port: u16,
    offered: Arc<Mutex<Vec<Vec<CipherSuite>>>>,
}

impl TlsFront {
    /// Starts a front end for `upstream` (`http://host:port`) on this port, or on any port if it is
    /// 0. The authority's certificate is written to `ca_file`, for clients that read it through
    /// `SSL_CERT_FILE`.
    pub(crate) fn start(port: u16, upstream: &str, ca_file: &Path) -> Self {
        let upstream: SocketAddr = upstream.trim_start_matches("http://").parse().unwrap();
        let (config, ca) = certified();
        fs::write(ca_file, ca).unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let front = Self {
            port: listener.local_addr().unwrap().port(),
            offered: Arc::default(),
        };
        let offered = Arc::clone(&front.offered);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((client, _)) = listener.accept().await {
                    // A failure here is one of the client's connection, and the client notices it.
                    tokio::spawn(connection(
                        client,
                        upstream,
                        Arc::clone(&config),
                        Arc::clone(&offered),
                    ));
                }
            });
        });
        front
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("https://{NAME}:{}", self.port)
    }

    /// Returns the cipher suites that each client offered, its preferred one first.
    pub(crate) fn offered(&self) -> Vec<Vec<CipherSuite>> {
        self.offered.lock().unwrap().clone()
    }
}

async fn connection(
    client: TcpStream,
    upstream: SocketAddr,
    config: Arc<ServerConfig>,
    offered: Arc<Mutex<Vec<Vec<CipherSuite>>>>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let begun = LazyConfigAcceptor::new(Acceptor::default(), client).await?;
    offered
        .lock()
        .unwrap()
        .push(begun.client_hello().cipher_suites().to_vec());
    let mut client = begun.into_stream(config).await?;
    let mut server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server)
        .await
        .map(|_| ())
}

/// Returns the server's TLS configuration, and the certificate, in PEM, of the authority that
/// signed it.
fn certified() -> (Arc<ServerConfig>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Without a name of its own the authority would look to OpenSSL like the issuer of a
    // self-signed server certificate.
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority for tests");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([NAME.to_owned()])
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = config
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (Arc::new(config), authority.pem())
}

//! Builds the SDK's client: credentials, region, time limits and retries are all set here and none
//! by default.

use super::keys::{CredentialSource, S3Keys};
use super::limit::AnswerLimit;
use super::{S3Encryption, S3Settings, is_local};
use crate::model::error_chain;
use crate::store::{Patience, StoreError, StoreErrorKind};
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::{
    EnvironmentVariableCredentialsProvider, EnvironmentVariableRegionProvider,
};
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::SharedHttpClient;
use aws_sdk_s3::config::interceptors::InterceptorContext;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction, RetryConfig};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder, Credentials, IdentityCache, ProvideCredentials, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, SharedCredentialsProvider, SharedInterceptor,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Connector, tls};
use std::fs::read_to_string;
use std::sync::Arc;
use std::time::Duration;

/// The maximum number of attempts of one request.
const ATTEMPTS_MAX: u32 = 6;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The longest stall of a download. (A stalled upload is ended by the attempt's own limit.)
const STALL_GRACE: Duration = Duration::from_secs(30);
/// The signed region for stores with an endpoint of their own, which mostly ignore it.
const REGION_OF_ENDPOINTS: &str = "us-east-1";
/// The number of attempts at the metadata service of EC2, which answers at once or never.
const METADATA_ATTEMPTS: u32 = 1;

/// The SDK's words for a profile whose kind this program was built without: a session of
/// `aws sso login` or `aws login`. Their clients would be two more SDKs.
const NOT_BUILT_IN: &str = "cargo feature(s) enabled";

/// A client, and the description of its endpoint for error messages.
pub(super) struct Connected {
    pub(super) client: Client,
    /// The same client for requests whose response is an object.
    pub(super) objects: Client,
    pub(super) endpoint: String,
    pub(super) tls: bool,
}

/// Finds region and credentials, and builds the client. Does not contact the store, and uses the
/// network only if the credentials come from there.
pub(super) async fn connect(settings: &S3Settings) -> Result<Connected, StoreError> {
    let failed = |kind, text: String| StoreError::new(kind, "connect to", "", settings.url(), text);
    settings
        .check()
        .map_err(|text| failed(StoreErrorKind::Invalid, text))?;
    let endpoint = settings.endpoint.clone().or_else(endpoint_of_environment);
    let region = find_region(settings, endpoint.is_some())
        .await
        .ok_or_else(|| {
            failed(StoreErrorKind::Invalid, "no region is named".to_owned())
                .with_hint("set `region` under [s3], or AWS_REGION, or a region in the profile")
        })?;
    let tls = is_encrypted(endpoint.as_deref());
    let transport_with = |proxy| {
        transport(tls, proxy).map_err(|text| {
            failed(StoreErrorKind::Invalid, text)
                .with_hint("install the package ca-certificates, or name a bundle in SSL_CERT_FILE")
        })
    };
    let transport = transport_with(ProxyConfig::from_env())?;
    let direct = transport_with(ProxyConfig::disabled())?;
    let keys = find_credentials(settings, &region, &transport, &direct).await?;
    let shared = load_shared(settings, region.clone(), &keys, transport).await;
    // A profile can name an endpoint too.
    let endpoint = endpoint.or_else(|| shared.endpoint_url().map(str::to_owned));
    let tls = is_encrypted(endpoint.as_deref());
    let sends_key = matches!(settings.encryption, Some(S3Encryption::Customer(_)));
    if sends_key && !tls && !endpoint.as_deref().is_some_and(is_local) {
        let text = "a customer key would cross the network unencrypted".to_owned();
        return Err(failed(StoreErrorKind::Invalid, text)
            .with_hint("write an endpoint that begins with https://"));
    }
    let named = endpoint
        .clone()
        .unwrap_or_else(|| format!("Amazon S3 in {region}"));
    let config = build_config(settings, &shared, keys, endpoint);
    let with_limit = |limit| Client::from_conf(config.clone().interceptor(limit).build());
    let client = with_limit(AnswerLimit::Everything);
    let objects = with_limit(AnswerLimit::Refusals);
    Ok(Connected {
        client,
        objects,
        endpoint: named,
        tls,
    })
}

/// Closes the path of an endpoint with a slash, without which the SDK joins the bucket to its last
/// name.
fn with_closed_path(endpoint: String) -> String {
    let (_, place) = endpoint.split_once("://").unwrap_or(("", &endpoint));
    if place.contains('/') && !place.ends_with('/') {
        return endpoint + "/";
    }
    endpoint
}

/// Whether requests to this endpoint are encrypted; those to Amazon's own are.
fn is_encrypted(endpoint: Option<&str>) -> bool {
    endpoint.is_none_or(|url| url.starts_with("https://"))
}

fn endpoint_of_environment() -> Option<String> {
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok())
}

/// Makes the HTTP client, for the store and for providers of credentials. Without root certificates
/// the SDK's own client would panic at the first request, even over plain http. A client that is
/// built here uses no proxy by default, not even that of the environment.
fn transport(tls: bool, proxy: ProxyConfig) -> Result<SharedHttpClient, String> {
    let has_roots = !rustls_native_certs::load_native_certs().certs.is_empty();
    if tls && !has_roots {
        return Err("this host has no root certificates, so no server can be verified".to_owned());
    }
    Ok(
        aws_smithy_http_client::Builder::new().build_with_connector_fn(
            move |settings, components| {
                let mut connector = Connector::builder().proxy_config(proxy.clone());
                connector.set_connector_settings(settings.cloned());
                connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
                if !has_roots {
                    return connector.build_http();
                }
                let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
                connector.tls_provider(provider).build()
            },
        ),
    )
}

async fn load_shared(
    settings: &S3Settings,
    region: Region,
    keys: &S3Keys,
    transport: SharedHttpClient,
) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(region)
        .credentials_provider(keys.clone())
        .http_client(transport);
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    loader.load().await
}

fn build_config(
    settings: &S3Settings,
    shared: &SdkConfig,
    keys: S3Keys,
    endpoint: Option<String>,
) -> Builder {
    let endpoint = endpoint.map(with_closed_path);
    let stall = StalledStreamProtectionConfig::enabled()
        .upload_enabled(settings.limiter.is_none())
        .download_enabled(settings.limiter_down.is_none())
        .grace_period(STALL_GRACE)
        .build();
    // No read time-out: the SDK counts it from the beginning of the request, so it would interrupt
    // the sending of a part on a slow line. The attempt's own limit serves the purpose, and calls
    // that move much data set a longer one.
    let limits = TimeoutConfig::builder()
        .connect_timeout(CONNECT_LIMIT)
        .disable_read_timeout()
        .disable_operation_timeout()
        .operation_attempt_timeout(settings.attempt_limit(0))
        .build();
    let mut config = Builder::from(shared);
    config.set_endpoint_url(endpoint.clone());
    if let Some(encryption) = settings.encryption.clone() {
        config.push_interceptor(SharedInterceptor::new(encryption));
    }
    config
        // [`S3Keys`] holds, renews and retries credentials in one place.
        .identity_cache(IdentityCache::no_cache())
        .retry_classifier(Retries {
            keys,
            patience: Arc::clone(&settings.patience),
        })
        .force_path_style(settings.path_style.unwrap_or(endpoint.is_some()))
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .stalled_stream_protection(stall)
        .timeout_config(limits)
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(ATTEMPTS_MAX)
                .with_initial_backoff(settings.pause_first),
        )
}

/// Decides what the SDK retries: also requests whose keys may have changed, and nothing while
/// [`Patience`] waits for the store. Otherwise each of its attempts would send a whole part several
/// times.
#[derive(Debug)]
struct Retries {
    keys: S3Keys,
    patience: Arc<Patience>,
}

impl ClassifyRetry for Retries {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match self.keys.classify_retry(context) {
            RetryAction::NoActionIndicated if self.patience.is_waiting() => {
                RetryAction::RetryForbidden
            }
            action => action,
        }
    }

    fn name(&self) -> &'static str {
        "retries of this program"
    }
}

async fn find_region(settings: &S3Settings, has_endpoint: bool) -> Option<Region> {
    if let Some(region) = &settings.region {
        return Some(Region::new(region.clone()));
    }
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &settings.profile {
        profile = profile.profile_name(name);
    }
    let named = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build());
    match named.region().await {
        Some(region) => Some(region),
        None if has_endpoint => Some(Region::from_static(REGION_OF_ENDPOINTS)),
        None if is_ec2() => ImdsRegionProvider::builder().build().region().await,
        None => None,
    }
}

/// Returns the configured credentials, or those of the first source that has any.
async fn find_credentials(
    settings: &S3Settings,
    region: &Region,
    transport: &SharedHttpClient,
    direct: &SharedHttpClient,
) -> Result<S3Keys, StoreError> {
    if let Some(given) = &settings.credentials {
        return Ok(S3Keys::new(
            CredentialSource::Given(settings.renew.clone()),
            Some(Credentials::from(given)),
        ));
    }
    let ec2 = is_ec2();
    let chain =
        SharedCredentialsProvider::new(credential_chain(settings, region, transport, direct, ec2));
    match chain.provide_credentials().await {
        Ok(held) => Ok(S3Keys::new(CredentialSource::Chain(chain), Some(held))),
        Err(error) => {
            let text = error_chain(&error);
            let hint = if text.contains(NOT_BUILT_IN) {
                export_hint(settings)
            } else {
                where_it_looked(settings, ec2)
            };
            let error = StoreError::new(
                StoreErrorKind::Denied,
                "find credentials for",
                "",
                settings.url(),
                text,
            );
            Err(error.with_hint(hint))
        }
    }
}

/// Builds the SDK's own chain, except that the metadata service is used only on EC2: elsewhere each
/// run would wait seconds for a response that never comes. The services of the container and of EC2
/// run on this host, where no proxy reaches them: `direct` uses none.
fn credential_chain(
    settings: &S3Settings,
    region: &Region,
    transport: &SharedHttpClient,
    direct: &SharedHttpClient,
    ec2: bool,
) -> CredentialsProviderChain {
    let config = ProviderConfig::default()
        .with_region(Some(region.clone()))
        .with_http_client(transport.clone());
    let direct = config.clone().with_http_client(direct.clone());
    let mut profile = ProfileFileCredentialsProvider::builder().configure(&config);
    if let Some(name) = &settings.profile {
        profile = profile.profile_name(name);
    }
    let environment = EnvironmentVariableCredentialsProvider::new();
    let web_identity = WebIdentityTokenCredentialsProvider::builder()
        .configure(&config)
        .build();
    let container = EcsCredentialsProvider::builder().configure(&direct).build();
    // A profile that is configured by name takes precedence over the environment.
    let chain = match settings.profile {
        Some(_) => CredentialsProviderChain::first_try("Profile", profile.build()),
        None => CredentialsProviderChain::first_try("Environment", environment)
            .or_else("Profile", profile.build()),
    };
    let chain = chain
        .or_else("WebIdentityToken", web_identity)
        .or_else("EcsContainer", container);
    if !ec2 {
        return chain;
    }
    let client = aws_config::imds::Client::builder()
        .configure(&direct)
        .max_attempts(METADATA_ATTEMPTS)
        .build();
    let instance = ImdsCredentialsProvider::builder()
        .configure(&direct)
        .imds_client(client)
        .build();
    chain.or_else("Ec2InstanceMetadata", instance)
}

/// Returns the remedy for a profile of `aws sso login` or `aws login`, whose sessions only Amazon's
/// program renews.
fn export_hint(settings: &S3Settings) -> String {
    let profile = settings.profile.clone();
    let profile = profile.or_else(|| std::env::var("AWS_PROFILE").ok());
    let profile = profile.as_deref().unwrap_or("default");
    let quoted = shell_words::quote(profile);
    format!(
        "the sessions of `aws sso login` and `aws login` are not supported directly: add a profile with the line \
         `credential_process = aws configure export-credentials --profile {quoted} --format process` to ~/.aws/config, \
         and name that profile as `profile` under [s3]"
    )
}

fn where_it_looked(settings: &S3Settings, ec2: bool) -> String {
    let profile = settings.profile.as_deref().unwrap_or("default");
    let environment = if settings.profile.is_some() {
        ""
    } else {
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    };
    let instance = if ec2 {
        ", the EC2 metadata service"
    } else {
        ""
    };
    format!(
        "looked at {environment}profile {profile:?} in ~/.aws/credentials and ~/.aws/config, \
         the web identity token, the container's credentials{instance}; or name key files under [s3]"
    )
}

/// Whether this machine is an EC2 instance.
fn is_ec2() -> bool {
    let begins = |path, start: &str| {
        read_to_string(path).is_ok_and(|text| text.to_ascii_lowercase().starts_with(start))
    };
    begins("/sys/class/dmi/id/sys_vendor", "amazon ec2") || begins("/sys/hypervisor/uuid", "ec2")
}

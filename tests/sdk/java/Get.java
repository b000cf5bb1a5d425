import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** GETs a URL with a bearer token, through the proxy of the system's properties. */
class Get {
    public static void main(String[] words) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(words[0])).header("Authorization", "Bearer " + words[1]).build();
        var client = HttpClient.newBuilder().proxy(java.net.ProxySelector.getDefault()).build();
        var answer = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
        System.out.print(answer.statusCode() + " ");
        // As it came, whatever the locale.
        System.out.write(answer.body());
        System.out.flush();
    }
}

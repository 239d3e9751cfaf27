import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;

/** The JDK's own HTTP server with a pool of threads, and garbage for the collector: Server PORT. */
public class Server {
    public static void main(String[] args) throws Exception {
        String secret = Long.toHexString(new SecureRandom().nextLong());
        AtomicLong count = new AtomicLong();
        HttpServer server = HttpServer.create(
            new InetSocketAddress("0.0.0.0", Integer.parseInt(args[0])), 64);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            long mine = count.incrementAndGet();
            Long[] squares = new Long[1000];
            for (int i = 0; i < squares.length; i++) {
                squares[i] = (long) i * i;
            }
            long work = 0;
            for (Long square : squares) {
                work += square;
            }
            byte[] body = (secret + " " + mine + " " + work).getBytes(StandardCharsets.US_ASCII);
            exchange.getResponseHeaders().set("Connection", "close");
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
